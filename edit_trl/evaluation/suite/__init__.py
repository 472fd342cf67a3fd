"""`edit-trl suite`: does a model prefer the correct chains?"""
