"""Which memories answer a query: candidates, features, ranking."""
