"""What people see: tables and answers for the terminal."""
