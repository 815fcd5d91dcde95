"""HOST: the small authority that says who is who at the broker, and what each may do there."""
