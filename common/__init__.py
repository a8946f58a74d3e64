"""What two or more papers share. Nothing here knows a paper."""
