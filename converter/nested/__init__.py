"""Networks within a network: hidden units in order, so that the first of them alone are one as well."""
