"""What AWS calls: events in, durable turns and responses out."""
