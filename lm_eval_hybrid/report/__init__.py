"""What people see: tables in the terminal, pages, and plots and tables for papers."""
