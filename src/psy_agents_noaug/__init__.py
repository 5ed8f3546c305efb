"""Reproducible fine-tuning of Hugging Face encoders on DSM-5 criteria, without augmentation."""

__version__ = "0.2.0"
