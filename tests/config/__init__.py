"""What is asked for: schema, hardware, arguments, plan, manual."""
