"""The results table: rows that are job files, a summary of each run, and the page that is made of them."""
