"""Puts a rewritten graph into a module: as one function, in a derived class; and replaces layers one for one."""
