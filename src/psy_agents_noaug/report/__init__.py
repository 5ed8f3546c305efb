"""Pages, figures and tables made from what runs left behind."""
