"""Gymnasium environments: made, stepped, rewound, normalised."""
