"""Values, networks and pipelines of papers that several shipped methods use. No method is registered here."""
