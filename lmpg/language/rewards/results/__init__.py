"""What rewards come to: scores of responses, the weighted sum of several."""
