"""How each kind of object becomes JSON and arrays, and comes back."""
