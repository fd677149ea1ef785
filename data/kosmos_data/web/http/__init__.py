"""Images by address: what servers ask for, and where a request may go at all."""
