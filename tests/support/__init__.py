"""What several test files share. Each piece is tested itself, in tests/unit/test_support.py."""
