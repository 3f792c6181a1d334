"""What sshd, inetd and FTP servers do: a process accepts, and a child of it serves. echo_server.py PORT. Answers each line with the pid
and the line."""

import os
import socketserver
import sys


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(f"{os.getpid()} ".encode() + line)


socketserver.ForkingTCPServer.allow_reuse_address = True
socketserver.ForkingTCPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
