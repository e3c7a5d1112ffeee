"""The web page of a swarm: live loss curves, peers, rounds, and what to do next.

A program that has something to show implements `snapshot.Source` (two methods) and hands it over:

    app = make_app(source, token=new_token())
    async with serving(app, open_socket(host, port)):
        ...

`snapshot.py` is the contract and the guard against hostile text, `hints.py` decides what the owner is advised to do,
`app.py` is the ASGI application, `gate.py` keeps strangers out, `serve.py` runs it in the caller's event loop,
`static/` is the page itself: plain ES modules, no build step, nothing fetched from elsewhere. Nothing here imports
`node`, torch or grpc.
"""
