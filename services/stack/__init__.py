"""The local stack behind `ltm up`: embedded Valkey and PostgreSQL, and the processes of Keepsake, supervised."""
