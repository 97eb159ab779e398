"""Drawing with plotly: numbers in, figures out."""
