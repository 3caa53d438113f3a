"""What people and machines touch: argv, the environment, the clock, printing, exit statuses."""
