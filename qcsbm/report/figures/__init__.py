"""Pictures: `style` gives all of them one look, the other modules draw one family each."""
