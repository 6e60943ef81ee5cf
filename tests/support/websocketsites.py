"""Applications of flask-sock and Flask-SocketIO, as their documentation has them, and a page for a browser."""

from __future__ import annotations

from typing import Any

from flask import Flask, request, session
from flask_sock import Sock
from flask_socketio import SocketIO, disconnect, emit, join_room, leave_room, rooms

# ---- flask-sock ------------------------------------------------------------------------------------------------

sock_app = Flask(__name__)
sock_app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25}
sock = Sock(sock_app)


@sock_app.route("/")
def _index() -> str:
    return "hello\n"


@sock.route("/echo")
def _echo(ws: Any) -> None:
    while True:
        data = ws.receive()
        if data == "close":
            break
        ws.send(data)


@sock.route("/reverse/<name>")
def _reverse(ws: Any, name: str) -> None:
    ws.send(f"{name} {request.args['a']} {request.headers['Origin']}")
    ws.close(4001, "enough")


PAGE = """<!doctype html><title>waiting</title><script>
const seen = [];
const socket = new WebSocket('ws://' + location.host + '/echo');
socket.binaryType = 'arraybuffer';
socket.onopen = () => { socket.send('grüße'); };
socket.onmessage = event => {
    if (typeof event.data === 'string') {
        seen.push(event.data);
        socket.send(new Uint8Array(300000));
    } else {
        seen.push(event.data.byteLength);
        socket.close(4002, 'done');
    }
};
socket.onclose = event => {
    seen.push(event.code, event.wasClean);
    fetch('/seen', {method: 'POST', body: JSON.stringify(seen)});
};
</script>"""


@sock_app.route("/page")
def _page() -> str:
    return PAGE


@sock_app.route("/seen", methods=["POST"])
def _seen() -> str:
    print("seen:", request.get_data(as_text=True), flush=True)
    return ""


# ---- Flask-SocketIO --------------------------------------------------------------------------------------------


# Engine.IO and Socket.IO by hand: polling, the upgrade, then messages over the WebSocket; and again by WebSocket alone.
SOCKETIO_PAGE = """<!doctype html><title>waiting</title><script>
const base = '//' + location.host + '/socket.io/?EIO=4';
const seen = [];
const next = async socket => {
    while (!socket.received.length) await new Promise(resolve => socket.wake = resolve);
    return socket.received.shift();
};
async function open(url) {
    const socket = new WebSocket('ws:' + url);
    socket.received = [];
    const put = data => { socket.received.push(data); if (socket.wake) socket.wake(); };
    socket.onmessage = event => put(event.data);
    socket.onclose = event => put('closed ' + event.code);
    await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = reject; });
    return socket;
}
async function poll(url, body) {
    const answer = await fetch('http:' + url, body === undefined ? {} : {method: 'POST', body: body});
    return (await answer.text()).split(String.fromCharCode(30));
}
async function tell(socket, word) {
    socket.send('42["my_event",{"data":"' + word + '"}]');
    let message;
    do message = await next(socket); while (!message.includes(word) && !message.startsWith('closed'));
    seen.push(message);
}
async function upgraded() {
    const polling = base + '&transport=polling';
    const sid = JSON.parse((await poll(polling))[0].slice(1)).sid;
    await poll(polling + '&sid=' + sid, '40');
    seen.push((await poll(polling + '&sid=' + sid)).map(each => each.slice(0, 2)).sort().join());
    const socket = await open(base + '&transport=websocket&sid=' + sid);
    socket.send('2probe');
    seen.push(await next(socket));
    socket.send('5');
    await tell(socket, 'upgraded');
    socket.close();
}
async function direct() {
    const socket = await open(base + '&transport=websocket');
    await next(socket);
    socket.send('40');
    await tell(socket, 'direct');
    socket.close();
}
upgraded().then(direct).catch(error => seen.push('' + error)).finally(
    () => fetch('/seen', {method: 'POST', body: JSON.stringify(seen)}));
</script>"""


def _with_socketio(async_mode: str) -> Flask:
    """Return an application with the events of Flask-SocketIO's example."""
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "secret!"
    socketio = SocketIO(app, async_mode=async_mode)

    @app.route("/")
    def index() -> str:
        return "hello\n"

    app.add_url_rule("/seen", view_func=_seen, methods=["POST"])
    app.add_url_rule("/page", "page", lambda: SOCKETIO_PAGE)

    @socketio.event
    def connect() -> None:
        emit("my_response", {"data": "Connected", "count": 0})

    @socketio.event
    def my_event(message: Any) -> None:
        session["receive_count"] = session.get("receive_count", 0) + 1
        emit("my_response", {"data": message["data"], "count": session["receive_count"]})

    @socketio.event
    def my_broadcast_event(message: Any) -> None:
        emit("my_response", {"data": message["data"]}, broadcast=True)

    @socketio.event
    def join(message: Any) -> None:
        join_room(message["room"])
        emit("my_response", {"data": sorted(set(rooms()) - {request.sid})})  # type: ignore[attr-defined]

    @socketio.event
    def leave(message: Any) -> None:
        leave_room(message["room"])

    @socketio.event
    def my_room_event(message: Any) -> None:
        emit("my_response", {"data": message["data"]}, to=message["room"])

    @socketio.event
    def in_background(message: Any) -> None:
        def work() -> None:
            socketio.sleep(0.01)
            socketio.emit("my_response", {"data": "from the background"})

        socketio.start_background_task(work)

    @socketio.event
    def my_ping() -> str:
        return "my_pong"

    @socketio.event
    def disconnect_request() -> None:
        disconnect()

    @socketio.on("disconnect")
    def disconnected(reason: str) -> None:
        print("disconnected:", reason, flush=True)

    return app


threads_app = _with_socketio("threading")
gevent_app = _with_socketio("gevent")
