"""From files on disk to shuffled batches."""
