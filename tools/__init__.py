"""What maintainers run in a checkout: archives, the page of results, the report's check."""
