"""Images: from any source, through the prepared store, to batches."""
