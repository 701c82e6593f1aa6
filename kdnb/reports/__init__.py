"""What runs left behind: read, compared, shown."""
