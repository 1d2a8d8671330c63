"""What `smallm NAME` and `scripts/NAME.py` do: read the line, call one function."""
