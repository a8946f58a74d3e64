"""What a paper says, and whether its sizes and rooms agree."""
