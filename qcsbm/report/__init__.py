"""From records to what people read: tables, claims, costs, figures and the state of a run."""
