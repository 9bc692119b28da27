"""What every report is made of: a page of one file, tables, pictures, and charts with values on hover."""
