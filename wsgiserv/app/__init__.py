"""Loading the application, and diagnosis when that fails."""
