"""How fast a file is and how much memory it takes: ``worker`` measures one, ``run`` all."""
