-- Puts back a message that a stock worker held, if nothing has happened to it since.
--
-- ARGV  4 tag   5 entry of `unacked`   6 envelope   7 step   8... queues

if call('HGET', UNACKED, ARGV[4]) ~= ARGV[5] then
  return 0
end
release({ ARGV[4] })
for i = 8, #ARGV do
  push('RPUSH', ARGV[i], ARGV[7], { ARGV[6] })
end
return 1
