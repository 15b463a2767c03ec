"""Chats as the settings want them."""
