"""Help pages of commands: one layout, whatever defines the options."""
