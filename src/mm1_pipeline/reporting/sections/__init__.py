"""One module and one function for each section of the report."""
