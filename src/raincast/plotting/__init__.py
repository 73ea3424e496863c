"""What leaves raincast: CF forecast files, pictures, animations and tables of scores."""
