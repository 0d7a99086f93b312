"""What an exchange sends, beside what the interfaces of its workers count."""
