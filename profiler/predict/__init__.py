"""How long a network will take, from what its operators have to do and what others like it took on the device."""
