"""What several algorithms share: fields with the credit or the loss terms that go with them."""
