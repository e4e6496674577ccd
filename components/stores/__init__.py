"""Where files lie: folders and buckets behind one interface, and what the steps keep in them."""
