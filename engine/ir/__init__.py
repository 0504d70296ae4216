"""The intermediate representation: sizes, types, graphs."""
