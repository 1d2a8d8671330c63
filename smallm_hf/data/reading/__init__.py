"""From files and data sets to documents."""
