"""What differs between tasks: tensors, model, loss, predictions and metrics."""
