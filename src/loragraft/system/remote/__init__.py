"""Files that lie elsewhere: named by URLs, read by ranges, through a bounded cache."""
