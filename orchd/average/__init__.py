"""One adapter from several people's: exact averages from Gram matrices, and their verification by anyone."""
