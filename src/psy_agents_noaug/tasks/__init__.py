"""What differs between tasks: tensors, model, loss, predictions, metrics."""
