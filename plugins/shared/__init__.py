"""Values, networks and pipelines of papers that several shipped methods stand on; no method is registered here."""
