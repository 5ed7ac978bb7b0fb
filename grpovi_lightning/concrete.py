"""Which classes are methods and rewards by themselves, and which only say what one is."""


def is_concrete(found: type) -> bool:
    """Tell whether objects can be made of a class; a module of torch may have abstract methods, too."""
    return not any(getattr(getattr(found, name, None), "__isabstractmethod__", False) for name in dir(found))
