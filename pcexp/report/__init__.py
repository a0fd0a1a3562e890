"""Claims, figures and their page, from records alone."""
