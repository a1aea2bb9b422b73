"""Studies: variants of recipes, trained and measured, and the tables and figures that come of them."""
